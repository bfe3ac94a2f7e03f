# Folded stacks of several loads into one table: a row for each part of the program, a column for each load. A stack belongs to the
# part of its innermost frame that is of one; what is of none is of the kernel or of nobody.
BEGIN {
    FS = ";"
    # name, pattern; the first one that matches a frame.
    part("waiting and waking (futex, epoll, scheduler)", "futex|epoll|^schedule|__schedule|sys_sched|nanosleep")
    part("sync of the log (kernel)", "fsync|fdatasync")
    part("sockets (kernel)", "sys_(sendto|recvfrom|sendmsg|recvmsg|writev|readv|write|read)$|tcp_|inet_|sock_|softirq")
    part("interrupts (kernel)", "asm_(sysvec|common|exc)|entry_SYSCALL|syscall_exit|irqentry|sysvec_|page_fault")
    part("allocator", "je_|^(malloc|calloc|realloc|free|mallocx|rallocx|sdallocx|cfree|_int_malloc|_int_free|operator (new|delete))|tcache|arena_")
    part("RocksDB", "rocksdb")
    part("HTTP/2", "^<?h2::|kv_http2|^<?hyper|^<?http::|httparse|tonic::")
    part("protobuf", "prost|kv_proto")
    part("openraft", "openraft")
    part("replication streams", "kvnode::transport")
    part("log", "kvnode::log")
    part("apply and state", "kvnode::(state|state_machine)")
    part("proposals and reads of a group", "kvnode::group")
    part("API and routing", "kvnode::(api|router|node|net|metrics)|kv_topology")
    part("client library", "kv_client")
    part("load generator", "kvctl|hdrhistogram|rand")
    part("tasks and channels (tokio)", "tokio|futures")
}

function part(name, pattern) {
    names[++parts] = name
    patterns[parts] = pattern
}

function part_of(frame,    number) {
    for (number = 1; number <= parts; number++) {
        if (frame ~ patterns[number]) return names[number]
    }
    return ""
}

FNR == 1 {
    load = FILENAME
    sub(/.*\//, "", load)
    sub(/-(nodes|client)\.folded$/, "", load)
    loads[++files] = load
}

{
    count = $NF
    sub(/.* /, "", count)
    sub(/ [0-9]+$/, "", $NF)
    found = ""
    for (at = NF; at > 1 && found == ""; at--) {
        if (!($at in known)) known[$at] = part_of($at)
        found = known[$at]
    }
    if (found == "") found = "else"
    share[found, load] += count
    total[load] += count
    weight[found] += count
}

END {
    header = "| Part |"
    line = "|---|"
    for (file = 1; file <= files; file++) {
        header = header " " loads[file] " |"
        line = line "---:|"
    }
    print header
    print line
    while (1) {
        best = ""
        for (name in weight) if (best == "" || weight[name] > weight[best]) best = name
        if (best == "") break
        row = "| " best " |"
        for (file = 1; file <= files; file++) row = row sprintf(" %.1f |", 100 * share[best, loads[file]] / total[loads[file]])
        print row
        delete weight[best]
    }
}
