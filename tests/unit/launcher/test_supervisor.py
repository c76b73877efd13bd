from __future__ import annotations

from diablo_ds.config.run import RunConfig
from diablo_ds.launcher.cluster import Host
from diablo_ds.launcher.supervisor import fitting_hosts


def test_a_smaller_cluster_keeps_the_global_batch():
    hosts = tuple(Host(f"h{number}", 4) for number in range(5))
    run = RunConfig(global_batch=96, micro_batch=2)
    assert len(fitting_hosts(run, hosts)) == 4  # 96 does not divide by 2 x 20
    assert len(fitting_hosts(run, hosts[:3])) == 3
    assert fitting_hosts(RunConfig(global_batch=2, micro_batch=2), hosts) == ()
