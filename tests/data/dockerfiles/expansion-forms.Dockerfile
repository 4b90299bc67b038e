FROM busybox:1.36
ENV name=archive.tar.gz path=/usr/local/lib
ENV short="${name%.*}" shortest="${name%%.*}" ext="${name#*.}" last="${name##*.}" \
    dash="${path//\//-}" first="${path/l/L}" \
    default="${unset:-fallback $name}" alt="${name:+set}" none="${unset:+set}" plain=${unset-x}
ENV single='$name' escaped=\$name mixed="it's \"$name\"" spaced=a\ b
ENV old style value with $name inside
ENV self="$self:more" nested=${unset:-${other:-${name}}}
WORKDIR ${path%/lib}/${shortest}
LABEL "quoted key"="a b" multi="one \
two" empty=
