"""The keeper: holds the image, starts servers, and replaces one that dies. No page is lost.

Four roles, each a process:

  * The **keeper** holds what outlives a server: the image, the socket, the backing as it was
    opened. It serves nothing, and is there from swap-up to swap-down.
  * The **server** answers the kernel's requests. There is one.
  * The **standby** is the next server. It has loaded and locked all that it needs, and waits to be
    told to begin. Nothing has to start, and no memory has to be found, when the server dies.
  * An **heir** is a standby that a server forks as it begins. So there is a next one at once, and
    it is of the server's own code, whatever lies on the disk by then.

Who starts whom (`-->`), and who takes over from whom (`==>`):

    swap-up --> keeper --> server A, which opens the backing; as it begins, it leaves
                  |           |
                  |           +--> heir B, the standby
                  |  A dies        ||
                  |                ==> server B; as it begins, it leaves
                  |                      |
                  |                      +--> heir C, the standby
                  |  B and C die         ||
                  |                      ==> nobody
                  |
                  +--> standby D, from disk ==> server D, which leaves no heir (memory is short)
                  |
                  +--> standby E, from disk, once D serves
                  |
                  +--> replacement, for swap-upgrade, beside a server and its heir; when it is
                       ready, the server is ended:   replacement ==> server
                       The heir is kept until that serves: the way back to the old code.

An heir is a child of its server, until that dies; then it is the keeper's, which is a subreaper.
What starts from disk is of the code that is there by then. Every server, the first one too, begins
as a standby.

    __main__.py        the start, until the loop runs
    keeper.py          the loop: what is looked at ten times a second
    states.py          the states of a succession, and the transitions between them
    succession.py      the processes: who serves, who is next, what brings new code
    server_process.py  one server as the keeper sees it; channel.py: what they say to each other
    locked_image.py    the image, kept in memory
    reserve.py         memory for a server that has to start when there is none
    surroundings.py    what others may change outside: watched.py, frozen.py
    swap_device.py     what swap-up hands over: state.py (the folder), reconnection.py
    launch.py          the keeper, as swap-up starts it

README.md in this folder has the story. This file imports nothing: the keeper locks what it loads.
"""
