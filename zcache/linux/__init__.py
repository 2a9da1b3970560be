"""What the kernel and the C library offer: calls and files of /proc and /sys; nothing of zcache's
own. `libc` has the calls that Python lacks, `memory` those about mapped memory, `landlock` those by
which a process gives up files."""
