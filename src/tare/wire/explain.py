"""``GET /tare/explain`` as JSON. Pure."""

from __future__ import annotations

from tare.model.explanation import Explanation

Json = dict[str, object]


def explanation(found: Explanation) -> Json:
    """The whole answer."""
    return {
        "Id": found.id,
        "Name": found.name,
        "State": found.state,
        "Why": list(found.verdict),
        "Advice": list(found.advice),
        "Limits": [
            {"What": one.what, "Value": one.value, "Source": one.source} for one in found.limits
        ],
        "Ports": [{"Port": one.port, "Rule": one.rule, "Reach": one.reach} for one in found.ports],
        "Networks": list(found.networks),
        "Isolation": list(found.isolation),
        "Volumes": list(found.volumes),
    }
