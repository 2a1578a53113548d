"""Every bound that ninep keeps, with its unit in its name and its reason beside it.

One frozen value, passed down explicitly.  Defaults are safe for a hostile peer on the network; no peer can raise them.
"""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one server.  tests/test_limits.py reaches each of them."""

    # Frames
    msize_bytes_max: int = (1 << 20) + 24  # one frame per direction: a 1 MiB payload and its header (9front: 1 MiB)
    first_message_bytes_max: int = 256  # a Tversion is 19 to 40 bytes: a stranger gets no large buffer
    first_message_seconds_max: float = 10.0  # connect and say nothing: hung up
    frame_seconds_max: float = 30.0  # from a frame's first byte to its last, whatever trickles between
    queued_bytes_max: int = 8 << 20  # replies not yet taken by the peer; past it, nothing more is read from it
    send_seconds_max: float = 60.0  # a peer that takes no byte of a waiting reply for so long is dropped
    bad_messages_max: int = 1000  # unknown or malformed frames answered on one connection before the hang-up

    # Sessions
    connections_max: int = 1024  # per listener; the newest is refused.  Idle ones keep 21 kB each (bench/RESULTS.md)
    connections_peer_max: int = 32  # per proven identity other than the host owner, per listener
    requests_max: int = 1024  # running at once in one session; past it a request is refused (a Tflush never is)
    parked_max: int = 65_536  # blocked operations in the whole node
    parked_principal_max: int = 8192  # and of one principal
    fids_max: int = 65_536  # per session; a walked fid keeps up to 1 KiB (bench/RESULTS.md), so 64 MiB
    fids_node_max: int = 262_144  # per node: 256 MiB, whatever the number of sessions
    call_seconds_max: float = 30.0  # a request that is not a stream's and not answered by then: timed out
    close_seconds_max: float = 2.0  # a Handle.close that takes longer is abandoned
    drain_seconds_max: float = 5.0  # SIGTERM: running requests may finish for so long

    # Names and metadata
    name_bytes_max: int = 255  # NAME_MAX of every Linux file system
    path_depth_max: int = 4096  # elements below the attach point; deeper walks answer ENAMETOOLONG
    symlink_bytes_max: int = 4095  # PATH_MAX - 1
    xattr_bytes_max: int = 65_536  # XATTR_SIZE_MAX
    xattr_names_max: int = 64  # per file, on trees that store them
    xattr_pending_bytes_max: int = 4 << 20  # per session, values in attribute fids: to be read or being written
    locks_max: int = 1024  # byte-range locks per session

    # Synthetic files
    text_bytes_max: int = 16 << 20  # one rendering of a state file
    ctl_bytes_max: int = 65_536  # one write to a ctl file; all of its lines are parsed and held before the first runs
    ctl_line_bytes_max: int = 4096  # the longest line that a terminal gives, termios(3)
    ctl_words_max: int = 64  # a line of the largest size could hold 2,048; each is converted
    stream_queue_max: int = 4096  # items held for one reader of a stream; then the oldest go and `lost n` is told
    scratch_files_max: int = 16  # editor scratch files beside a document, per principal
    errstr_lines_max: int = 64  # per caller; an error is short, so a few KiB

    # Trees
    ram_bytes_max: int = 1 << 30  # content of one ram tree
    ram_files_max: int = 1_000_000
    host_threads_max: int = 16  # blocking host calls at once, per export
    host_seconds_max: float = 30.0  # a host file system that does not answer; as call_seconds_max
    host_fds_share: float = 0.5  # of RLIMIT_NOFILE, for warm O_PATH descriptors

    # FUSE
    fuse_write_bytes_max: int = 1 << 20  # one write(2) on a ctl is one message up to this size
    fuse_background_max: int = 512  # readahead and asynchronous I/O in flight; the kernel's own default is 12

    # Client
    connect_seconds_max: float = 10.0  # three lost SYNs are sent again after 1, 3 and 7 s
    reply_seconds_max: float = 30.0  # a server that does not answer a bounded request; ours would have by then
    client_window_bytes: int = 8 << 20  # read-ahead in flight on one file
    client_dir_entries_max: int = 4_000_000  # entries of one directory, from a server that may never come to an end


DEFAULT = Limits()
