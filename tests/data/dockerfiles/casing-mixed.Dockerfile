from busybox:1.36 as One
Run echo a
ENV A=1
cmd echo $A
FROM One AS two
CMD ["b"]
