"""The nbdkit front-end of zcache."""
