"""What the kernel and the C library offer: calls and files of /proc and /sys; nothing of zcache's
own."""
