"""That the price of communication can be measured; the figures themselves are made by `measure_links.py`."""

import pytest
from distributed.link_worker import MODES, TINY
from distributed.machines import NoNamespacesError
from distributed.measure_links import measure_cables, table


@pytest.mark.nightly
@pytest.mark.parametrize("cable", ["1 Gbit/s", "1 Gbit/s, 1 ms"])
def test_a_slowed_cable_is_measured(cable: str) -> None:
    try:
        report = measure_cables(TINY, [cable])
    except NoNamespacesError as error:
        pytest.skip(f"no such cable here: {error}")
    found = report[cable]
    assert found["modes"].keys() == MODES.keys()
    assert all(mode["traced"]["sent_seconds"] > 0 for mode in found["modes"].values())
    assert found["evaluation_seconds"] > 0
    assert found["save_seconds"] > 0
    assert report["alone"]["modes"]["DDP"]["traced"]["sent_seconds"] < found["modes"]["DDP"]["traced"]["sent_seconds"]
    if "1 ms" in cable:
        assert found["all_reduce"]["4"] > 0.002, "there and back"
    assert cable in table(report)
