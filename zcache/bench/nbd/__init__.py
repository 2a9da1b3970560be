"""Speed by NBD: beside nbdkit's own plugins, by threads, by fio."""
