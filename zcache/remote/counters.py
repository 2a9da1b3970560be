"""What was done with copies, in figures: each is in `zcache status --json` under its name."""


class Counters:
    """What was done, ever; `lost_frames` is how many there are now. The names of the original's
    (ramster's debugfs) are beside those that mirror them."""

    def __init__(self) -> None:
        self.remoted_frames = 0  # remote_pers_pages: written, however many copies
        self.remote_failed_frames = 0  # pers_pages_remote_failed: not taken by as many peers as had to
        self.remote_gets = 0  # frames fetched
        self.remote_hedged_gets = 0  # of these, not from the copy that was asked first
        self.remote_failed_gets = 0  # no copy could be had
        self.remote_missing_copies = 0  # an engine had lost one that we knew of
        self.remote_flushes = 0  # copies removed
        self.remirrored_frames = 0  # second copies made again
        self.remote_lost_frames = 0  # now: those of which no copy is left

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return dict(vars(self))
