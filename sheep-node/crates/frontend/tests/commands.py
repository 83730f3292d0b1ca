# Run by nbdsh (libnbd's shell): the commands and errors that the other tools never produce.
# The caller has set `uri` and `ro`. Strict mode is off, so that libnbd sends what it would refuse itself.
import errno

MIB = 1 << 20


def connect(uri, structured=True, context=True):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_strict_mode(0)
    if context:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


def fails(want, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as error:
        assert error.errnum == want, (error.errnum, want, args)
    else:
        raise AssertionError(("no error", want, args))


for structured in (True, False):
    h = connect(uri, structured, structured)
    size = h.get_size()
    assert h.get_structured_replies_negotiated() == structured
    assert h.can_df() == structured
    h.zero(4 * MIB, 0)
    h.pwrite(b"x" * 8192, 4096)
    h.pwrite(b"y" * 512, 512, nbd.CMD_FLAG_FUA)
    want = bytes(512) + b"y" * 512 + bytes(3072) + b"x" * 8192 + bytes(4096)
    assert h.pread(16384, 0) == want
    if structured:
        assert h.pread(16384, 0, nbd.CMD_FLAG_DF) == want
        chunks = []
        def chunk(data, offset, status, err):
            chunks.append((offset, len(data), status))
        h.pread_structured(16384, 0, chunk)
        assert chunks == [(0, 12288, nbd.READ_DATA), (12288, 4096, nbd.READ_HOLE)], chunks
        chunks.clear()
        h.pread_structured(16384, 0, chunk, nbd.CMD_FLAG_DF)
        assert chunks == [(0, 16384, nbd.READ_DATA)], chunks
        extents = []
        def extent(context, offset, entries, err):
            extents.append((context, offset, entries))
        h.block_status(16384, 0, extent)
        assert extents == [("base:allocation", 0, [12288, 0, 4096, 3])], extents
        extents.clear()
        h.block_status(size, 0, extent, nbd.CMD_FLAG_REQ_ONE)
        assert extents == [("base:allocation", 0, [12288, 0])], extents
        fails(errno.EINVAL, h.block_status, 0, 0, extent)
        fails(errno.EINVAL, h.block_status, 1024, size - 512, extent)
        fails(errno.EOVERFLOW, h.pread, 33 * MIB, 0, nbd.CMD_FLAG_DF)
    h.trim(4096, 4096)
    assert h.pread(4096, 4096) == bytes(4096)
    h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    assert h.pread(8192, 4096) == bytes(8192)
    h.zero(8192, 0, nbd.CMD_FLAG_FAST_ZERO)
    fails(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
    h.cache(MIB, 0)
    h.flush()
    big = bytes(range(256)) * (32 * MIB // 256)
    h.pwrite(big, 16 * MIB)
    assert h.pread(32 * MIB, 16 * MIB) == big
    # Refused writes: their payload must be skipped for the connection to go on.
    fails(errno.ENOSPC, h.pwrite, b"z" * 8192, size - 4096)
    fails(errno.EINVAL, h.pwrite, b"z" * 100, 0)
    fails(errno.EINVAL, h.pwrite, b"z" * 512, 100)
    fails(errno.ENOSPC, h.zero, 8192, size - 4096)
    fails(errno.EINVAL, h.trim, 8192, size - 4096)
    fails(errno.EINVAL, h.pread, 8192, size - 4096)
    fails(errno.EINVAL, h.pread, 512, (1 << 63) - 512)
    fails(errno.EINVAL, h.pread, 100, 0)
    fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
    fails(errno.EINVAL, h.cache, 1024, size - 512)
    if not structured:
        fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_DF)
    h.pwrite(b"", 0)
    assert h.pread(0, 0) == b""
    h.trim(0, 0)
    h.zero(4 * MIB, 0)
    h.shutdown()

h = connect(ro)
assert h.is_read_only()
fails(errno.EPERM, h.pwrite, b"z" * 512, 0)
fails(errno.EPERM, h.trim, 512, 0)
fails(errno.EPERM, h.zero, 512, 0)
h.flush()
assert len(h.pread(4096, 0)) == 4096
h.shutdown()

h = connect(uri, context=False)
fails(errno.EINVAL, h.block_status, 512, 0, lambda *args: 0)
h.shutdown()

# Negotiation by hand.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
listed = []
h.opt_list(lambda name, description: listed.append(name))
assert listed == ["disk", "readonly"], listed
for query, want in (("base:", ["base:allocation"]), ("qemu:", []), (None, ["base:allocation"])):
    h.clear_meta_contexts()
    if query:
        h.add_meta_context(query)
    contexts = []
    h.opt_list_meta_context(lambda name: contexts.append(name))
    assert contexts == want, (query, contexts)
h.set_export_name("nothing")
fails(errno.ENOENT, h.opt_info)
h.set_export_name("readonly")
h.opt_info()
assert h.is_read_only()
h.set_export_name("disk")
h.opt_go()
assert not h.is_read_only()
h.shutdown()
print("all commands behave")
