"""Run config and cluster to a command line: a pure function, so that what is shown is what runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from diablo_ds.config.batch_resolution import resolve_batch
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import with_value
from diablo_ds.config.words import train_words
from diablo_ds.launcher.cluster import SSH_RUNNERS, Cluster
from diablo_ds.launcher.quoting import check_plain, pdsh_word
from diablo_ds.ranks.environment import home_exports

SCRIPT = Path(__file__).parent / "script" / "train.py"


def build_command(
    run_config: RunConfig,
    ds_config: Path,
    cluster: Cluster,
    log_folder: Path,
    *,
    hidden_file: Path | None = None,
    recorded: RunConfig | None = None,
) -> list[str]:
    """Return the words of the `deepspeed` command that starts a run on a cluster.

    Args:
        run_config: the run config; every field that is not at its default becomes an option,
            and every one that changes.
        ds_config: DeepSpeed config file.
        cluster: where the run goes.
        log_folder: for one log and one record per rank; shared by all hosts.
        hidden_file: in it, with the variables that must not be on a command line.
        recorded: the run config of the run that is continued.

    Raises:
        UserError: if the global batch does not divide, or a value cannot pass through the runner.
    """
    resolve_batch(run_config, cluster.world_size)
    script = with_value("--ds_config", shown_path(ds_config))
    script += with_value("--log-folder", str(log_folder))
    for name, value in cluster.rank_env().items():
        script += ["--env", f"{name}={value}"]
    for option, own in (
        ("--env-file", hidden_file),
        ("--venv", cluster.venv),
        ("--wrap", cluster.wrap),
    ):
        script += with_value(option, str(own)) if own else []
    script += train_words(run_config, recorded)
    if cluster.runner == "pdsh":
        _check_remote_names()
        script = [pdsh_word(word) for word in script]
    return ["deepspeed", *_launcher_options(cluster), shown_path(SCRIPT), *script]


def launcher_env(cluster: Cluster, exports_file: Path | None = None) -> dict[str, str]:
    """Return the environment variables that the `deepspeed` command itself needs.

    Args:
        cluster: where the command goes.
        exports_file: what DeepSpeed exports on other hosts; by default the file at home only, not
            the one in the working folder.
    """
    # Python imports what lies in the working folder first where it starts a module by its name.
    wanted = {"PYTHONSAFEPATH": "1"}
    wanted |= {name: value for name, value in cluster.env.items() if name == "DS_ACCELERATOR"}
    if cluster.runner in SSH_RUNNERS or cluster.runner == "slurm":
        wanted["DS_ENV_FILE"] = str(exports_file or home_exports())
    if cluster.runner == "pdsh":  # a host that went down must not hold the launcher for hours
        keep_alive = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
        wanted |= {"PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": keep_alive}
    return wanted


def shown_path(path: Path) -> str:
    """Return a path as short as it is from the current folder."""
    absolute = path.resolve()
    inside = absolute.is_relative_to(Path.cwd())
    return os.path.relpath(absolute) if inside else str(absolute)


def _launcher_options(cluster: Cluster) -> list[str]:
    options = ["--master_port", str(cluster.master_port)]
    if cluster.runner == "local":
        # Without a hostfile DeepSpeed takes /job/hostfile, whoever wrote it.
        here = ["--hostfile", os.devnull, "--num_gpus", str(cluster.hosts[0].slots)]
        return [*here, *options, "--log_level", "warning"]
    options = [
        *with_value("--hostfile", str(cluster.hostfile)),
        "--master_addr",
        cluster.first_address,
        *options,
    ]
    for name in ("num_nodes", "num_gpus"):
        if getattr(cluster, name) is not None:
            options += [f"--{name}", str(getattr(cluster, name))]
    if cluster.runner == "no-ssh":
        return ["--no_ssh", "--node_rank", str(cluster.node_rank), *options]
    options += ["--launcher", cluster.runner, "--force_multi"]
    if cluster.runner != "pdsh":  # MPI and SLURM have ways of their own to a host
        options.append("--no_ssh_check")
    if cluster.ssh_port is not None:
        options += ["--ssh_port", str(cluster.ssh_port)]
    if launcher_args := _launcher_args(cluster):
        options.append(f"--launcher_args={launcher_args}")
    return options


def _launcher_args(cluster: Cluster) -> str:
    """Return arguments for pdsh, mpirun or srun."""
    if cluster.runner == "openmpi" and cluster.interface:  # DeepSpeed would have MPI use eth0
        return f"--mca btl_tcp_if_include {cluster.interface} {cluster.launcher_args}".strip()
    return cluster.launcher_args


def _check_remote_names() -> None:
    """Raise UserError where pdsh or the shell of another host would read more into a name."""
    check_plain("the working folder", str(Path.cwd()))
    check_plain("the script", shown_path(SCRIPT))
    check_plain("Python", sys.executable)
