"""Which commands there are and which module has them.

Only names and summaries: the module of a command is imported when it is called, so `tare ps`
does not pay for `tare cp`.
"""

from __future__ import annotations

# name -> (module, summary)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Create a container from an image and run it"),
    "exec": ("exec", "Run a command in a running container"),
    "ps": ("ps", "List containers"),
    "images": ("images", "List images"),
    "version": ("system", "Show the versions of client and daemon"),
    "info": ("system", "Show what the engine is, has and may use"),
    "doctor": ("system", "Check the host and say what is missing and what it costs"),
    "budget": ("budget", "Show what the engine may use of this server, and who holds what"),
    "build": ("build", "Build an image of a Dockerfile"),
    "audit": ("audit", "Check host, engine, images and workloads against the CIS Docker Benchmark"),
    "attach": ("run", "Attach to a running container's input and output"),
    "commit": ("files", "Make an image of what a container changed"),
    "cp": ("files", "Copy files between a container and the host"),
    "create": ("run", "Create a container without starting it"),
    "diff": ("files", "Show what a container changed in its file system"),
    "events": ("events", "Show what happens, as it happens"),
    "explain": ("explain", "Say why a container is as it is: its end, limits, ports, walls"),
    "export": ("files", "Write a container's file system as a tar archive"),
    "history": ("images", "Show how an image was made"),
    "import": ("archives", "Make an image of a tar archive of a file system"),
    "inspect": ("inspect", "Show all details of containers and images"),
    "kill": ("containers", "Kill running containers, or send them a signal"),
    "load": ("archives", "Load images from a tar archive"),
    "login": ("transfers", "Check credentials with a registry and keep them"),
    "logout": ("transfers", "Forget the credentials for a registry"),
    "logs": ("logs", "Show what a container has printed"),
    "pause": ("containers", "Freeze all processes of containers"),
    "port": ("containers", "Show the published ports of a container"),
    "pull": ("transfers", "Bring an image from a registry"),
    "push": ("transfers", "Give an image to a registry"),
    "rename": ("containers", "Give a container another name"),
    "restart": ("containers", "Stop containers and start them again"),
    "rm": ("containers", "Remove containers"),
    "rmi": ("images", "Remove images"),
    "save": ("archives", "Write images as a tar archive"),
    "search": ("transfers", "Search Docker Hub, or another registry"),
    "start": ("run", "Start containers that are stopped"),
    "stats": ("stats", "Show what containers use, as they use it"),
    "stop": ("containers", "Stop running containers"),
    "tag": ("images", "Give an image another name"),
    "top": ("containers", "List the processes of a container"),
    "unpause": ("containers", "Let frozen containers go on"),
    "update": ("containers", "Change the limits of containers"),
    "wait": ("containers", "Wait until containers end and print their exit codes"),
    "builder prune": ("build", "Remove what builds keep for the next one"),
    "container prune": ("prune", "Remove all stopped containers"),
    "container inspect": ("inspect", "Show all details of containers"),
    "image bootstrap": ("archives", "Make a base image from Debian's signed packages"),
    "image inspect": ("inspect", "Show all details of images"),
    "image outdated": ("upkeep", "Show which images are behind what they were made of"),
    "image pin": ("upkeep", "Keep names from every prune, and from rmi without --force"),
    "image provenance": ("upkeep", "Write what was noted of how an image was built"),
    "image prune": ("prune", "Remove images that nothing uses"),
    "image rebuild": ("upkeep", "Make those images anew that are behind"),
    "image sbom": ("upkeep", "Write an image's bill of materials, read from its files"),
    "image unpin": ("upkeep", "Keep names no more"),
    "convert": ("machines", "Make a virtual machine of a container, or the other way round"),
    "vm kernels": ("machines", "Show the kernels that virtual machines boot"),
    "budget set": ("budget", "Change what the engine, or a project, may use"),
    "budget rm": ("budget", "Forget what was set"),
    "ledger": ("ledger", "Show who did what to which image with which verdict"),
    "ledger export": ("ledger", "Write all entries as lines of JSON"),
    "ledger show": ("ledger", "Show who did what to which image with which verdict"),
    "ledger verify": ("ledger", "Check that no entry was changed, left out or cut off"),
    "trust": ("trust", "Show whether only verified images run, and by what they are verified"),
    "trust key add": ("trust", "Trust a public key for the images of a scope"),
    "trust key generate": ("trust", "Make a key pair"),
    "trust key ls": ("trust", "List the keys that are trusted"),
    "trust key rm": ("trust", "Trust keys no more"),
    "trust off": ("trust", "Verify nothing"),
    "trust on": ("trust", "Refuse images that nothing verifies"),
    "trust pin": ("trust", "Let names mean the digests they have now, and no others"),
    "trust revoke": ("trust", "Let a key, or the image with a digest, count no more"),
    "trust sign": ("trust", "Sign images, and bring the signatures to their registry"),
    "trust status": ("trust", "Show whether only verified images run"),
    "trust unpin": ("trust", "Let names mean any digest"),
    "trust verify": ("trust", "Say whether images are verified, and why"),
    "trust vouch": ("trust", "Show what is known of an image, and answer for it"),
    "trust warn": ("trust", "Warn of images that are not verified"),
    "network connect": ("networks", "Put a container into a network"),
    "network create": ("networks", "Make a network"),
    "network disconnect": ("networks", "Take a container out of a network"),
    "network inspect": ("networks", "Show all details of networks"),
    "network ls": ("networks", "List networks"),
    "network prune": ("networks", "Remove all networks that no container is to be in"),
    "network rm": ("networks", "Remove networks"),
    "volume create": ("volumes", "Make a volume"),
    "volume export": ("volumes", "Write a volume as a tar archive, bit for bit"),
    "volume import": ("volumes", "Make a volume of an archive"),
    "volume inspect": ("volumes", "Show all details of volumes"),
    "volume ls": ("volumes", "List volumes"),
    "volume prune": ("volumes", "Remove anonymous volumes that no container has"),
    "volume rm": ("volumes", "Remove volumes and what is in them"),
    "manifest inspect": ("transfers", "Show a manifest or an index as a registry has it"),
    "registry gc": ("registries", "Delete the blobs of the registry that no manifest needs"),
    "registry ls": ("registries", "List the names that the registry has"),
    "registry passwd": ("registries", "Set a user's password in a file for --htpasswd"),
    "registry serve": ("registries", "Serve a registry until it is told to end"),
    "system df": ("system", "Show how much disk is used"),
    "system prune": ("prune", "Remove stopped containers, unused networks and images"),
}

COMMON = ("run", "exec", "ps", "images", "version", "info", "doctor")

_CONTAINER = (
    "attach", "commit", "cp", "create", "diff", "exec", "export", "kill", "logs", "pause", "port",
    "rename", "restart", "rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait",
)  # fmt: skip

_IMAGE = ("history", "import", "load", "pull", "push", "save", "tag")

# other ways to write a command -> its name above
ALIASES: dict[str, str] = {
    **{f"container {name}": name for name in _CONTAINER},
    "container ls": "ps",
    "container list": "ps",
    "container ps": "ps",
    "container remove": "rm",
    **{
        f"image {name}": name
        for name in ("history", "import", "load", "pull", "push", "save", "tag")
    },
    "image ls": "images",
    "image list": "images",
    "image rm": "rmi",
    "image remove": "rmi",
    "network list": "network ls",
    "network remove": "network rm",
    "volume list": "volume ls",
    "volume remove": "volume rm",
    "system info": "info",
    "system events": "events",
    "image build": "build",
    "builder build": "build",
}

GROUPS = {
    "builder": "Manage what builds keep",
    "container": "Manage containers",
    "image": "Manage images",
    "manifest": "Look at manifests",
    "network": "Manage networks",
    "registry": "Serve a registry",
    "system": "Manage the engine",
    "vm": "Look after virtual machines",
    "volume": "Manage volumes",
}

# Docker's commands that are not here yet: the sentence says what to do instead.
LATER: dict[str, str] = {
    "compose": "Start the services one by one with `tare run -d`.",
}
