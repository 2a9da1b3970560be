"""Settings that are held while the swap is on."""

from pathlib import Path

from zcache.swap.sysctls import hold, put_back


def test_hold_and_put_back(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    setting = tmp_path / "vm/watermark_boost_factor"
    setting.write_text("15000\n")
    before = hold({"vm/watermark_boost_factor": "0", "vm/not_in_this_kernel": "1"}, tmp_path)
    assert setting.read_text() == "0" and before == {"vm/watermark_boost_factor": "15000"}
    put_back(before, tmp_path)
    assert setting.read_text() == "15000"
