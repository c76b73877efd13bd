from __future__ import annotations

import pytest

from diablo_ds.launcher.node_share import Node, node_request, parse_nodes
from tests.unit.launcher.cases import make_job

SINFO = """\
128|1000000|2|gpu*|gpu:a100:8(S:0-1)
64|250000|1|gpu*|gpu:a100:4
48|1|1|cpu|(null)
no node
"""
NODES = parse_nodes(SINFO, is_default=True)


def test_nodes_of_the_default_partition_are_read_from_sinfo():
    assert [Node(128, 1000000, 2, 8), Node(64, 250000, 1, 4)] == NODES
    assert len(parse_nodes(SINFO, is_default=False)) == 3


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ({"gpus_per_node": 2}, ("--cpus-per-task=32", "--mem=125000M")),
        ({"gpus_per_node": 8}, ("--exclusive", "--mem=0")),
        ({"gpus_per_node": 16}, ("--exclusive", "--mem=0")),
        ({"gpus_per_node": None, "ranks_per_node": 2}, ("--exclusive", "--mem=0")),
        ({"gpus_per_node": 2, "cpus_per_task": 5}, ("--cpus-per-task=5", "--mem=125000M")),
        ({"gpus_per_node": 2, "cpus_per_task": 5, "mem": "9G"}, ("--cpus-per-task=5", "--mem=9G")),
        ({"gpus_per_node": 2, "exclusive": True}, ("--exclusive", "--mem=0")),
    ],
)
def test_a_job_asks_for_the_share_of_its_gpus_unless_it_is_told_otherwise(job, options):
    request = node_request(make_job(**job), NODES)
    assert request.options == options
    assert request.has_cpus_per_task == any("cpus" in option for option in options)
