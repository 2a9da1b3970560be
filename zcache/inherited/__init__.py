"""A start that takes nothing with it: what fork(2) and exec(2) hand on is put right before anything
else is done.

Whoever starts zcache (a Java service, a cron job, a package's upgrade, conda's shell) has settings
of its own, and what it starts inherits them. So each program of ours begins with `start.put_right`.
What the kernel, the loader or Python read only at exec(2) is put right by running the same command
once more, if it was wrong.

| inherited                 | what it would do                            | what is set                                |
|---------------------------|---------------------------------------------|--------------------------------------------|
| signal mask               | SIGTERM does nothing; swap-upgrade waits    | none blocked; pending ones are dropped,    |
|                           |                                             | but for those that end a program           |
| ignored signals           | SIGCHLD: commands that failed count as done | default. SIGHUP, SIGINT, SIGQUIT stay      |
|                           |                                             | ignored (nohup, `&`), but in the keeper;   |
|                           |                                             | SIGPIPE and SIGXFSZ are Python's           |
| limits: CPU, RTTIME       | servers are killed, one after the other     | none (hardening/limits.py)                 |
| limits: memory, files, …  | the start fails, or a successor's           | none, or the hard limit; too low: refused  |
| limit: STACK              | the size of threads' stacks, from exec on   | 8 MiB; nbdkit 512 KiB                      |
|                           |                                             | (server/program.py)                        |
| limits: RTPRIO, NICE      | no real time, no nice value of 0            | the hard limit: more is not needed         |
| limits: CORE, MSGQUEUE, … | nothing: who holds pages dumps no core      | left                                       |
| scheduling policy, nice   | page-ins wait for all other work            | SCHED_OTHER, 0; then hardening: real time, |
|                           |                                             | which a keeper's server has from its start |
| I/O class                 | page-ins wait for all other I/O (BFQ)       | none: it goes by the nice value            |
| CPU affinity              | all threads on one processor                | all that the cpuset allows                 |
| NUMA policy               | memory of one node, and killed when it is   | the default                                |
|                           | full                                        |                                            |
| timer slack               | sleeps that end late                        | 50 us, the kernel's default                |
| interval timers           | SIGALRM and its siblings, which kill        | none                                       |
| umask                     | folders that nobody can enter, files for    | 022; sockets and backing 0177 (server.py)  |
|                           | all                                         |                                            |
| descriptors               | others' files, pipes and locks stay open    | closed, but for 0 to 2 and those that are  |
|                           |                                             | named (descriptors.py); 0 to 2 are opened  |
| working folder            | its file system cannot be unmounted         | keeper and its servers: /. Commands and    |
|                           |                                             | `serve`: left, for their words may be      |
|                           |                                             | relative                                   |
| personality               | no ASLR, other places for mmap              | Linux's                                    |
| parent-death signal       | we end when who started us does             | none (nbdkit's own: the plugin, ending.py) |
| child subreaper           | orphans of ours that nobody collects        | no; the keeper makes itself one            |
| KSM for all memory        | pages are merged, and copied in a request   | off                                        |
| early kill at bad memory  | a page that nobody reads ends the server    | the system's default                       |
| OOM score                 | swap-down is the first to be ended          | 0 if it was more; then hardening: -1000    |
| locale                    | names beyond ASCII fail in nbdkit's Python  | LC_ALL=C.UTF-8                             |
| variables of Python, the  | other code than ours; Python does not start | gone (environment.py)                      |
| loader, malloc, OpenSSL   |                                             |                                            |
| all other variables       | what they are meant to: PATH, TMPDIR,       | left                                       |
|                           | NBDKIT_*                                    |                                            |
| control group             | the end of a session ends us; we are        | a scope, or a group of our own             |
|                           | swapped out                                 | (swap/cgroup.py)                           |
| no_new_privs, seccomp,    | cannot be undone                            | left; the protections name what fails for  |
| Landlock, capabilities    |                                             | it                                         |
| dumpability, memory       | not inherited, or set by hardening          | left                                       |
| locks, huge pages         |                                             |                                            |
| namespaces, root, session | they are places that were chosen            | left; the keeper has a session of its own  |

What cannot be put right, for want of privileges, is said in one line.

To confine zcache to some processors, or to a memory node, on purpose, use a cpuset: `AllowedCPUs=`
or `AllowedMemoryNodes=` in a drop-in of the unit. A command that `nbdkit --run` runs has the
server's environment.
"""
