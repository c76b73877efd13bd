"""The shell code of a batch script, as texts to be filled in."""

from __future__ import annotations

FIRST_NODE = '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"'

INHERITED = """\
if [ -z "${{{name}+set}}" ]; then
    echo "Error: {name} must be set where the job is submitted, and be exported to it" >&2
    exit {user_error}
fi"""

OWN_MEMORY = """\
# Of the job in whose shell this one was submitted: srun refuses them beside this one's memory.
unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU"""

START = """\
job_name={job_name}
logs="$run_folder/{logs}/$job_name-${{SLURM_RESTART_COUNT:-0}}"
umask {umask}
mkdir -p -- "$logs"
export run_folder log_folder
# Python imports what lies in the working folder first where it starts a module by its name.
export PYTHONSAFEPATH=1
export {run_key}="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"
export {warning_variable}={warning_s}
export hostfile="$logs/hostfile"
export master_addr={master_addr}
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/ slots={slots}/' > "$hostfile"
# Since SLURM 22.05 srun does not take over the CPUs that the job asked for.
export SRUN_CPUS_PER_TASK={cpus}
"""

JOB_NAME = '"$SLURM_JOB_ID"'
ARRAY_JOB_NAME = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'

ASKED_CPUS = '"$SLURM_CPUS_PER_TASK"'
NODE_CPUS = """\
"$(tr , '\\n' <<< "$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | head -n 1)"\
"""
"""Those of the node that has the fewest, from a list such as 72(x2),36."""

RUN_ONCE = """\
attempt=0
{restarts}port_tries=0
signals=0
trap 'signals=$((signals + 1)); scancel --signal=USR1 "$SLURM_JOB_ID.$attempt"' USR1 TERM

run_once() {{
    log_folder="$logs/attempt-$attempt"
    mkdir -p -- "$log_folder"
    # A node that is done must not cut the others short; after a failure the guards end them.
    srun --cpus-per-task="$SRUN_CPUS_PER_TASK" --export=ALL --kill-on-bad-exit=0 \\
        bash -c {command} &
    while :; do
        before=$signals
        wait $!
        code=$?
        [ "$signals" = "$before" ] && break  # otherwise a signal ended the wait, not the run
    done
}}
"""

END = """\
while :; do
    run_once
    case $code in
        0 | {stopped} | {user_error}) break ;;  # done, stopped, or a setting that stays wrong
    esac
    diablo-ds explain -- "$log_folder"
    first=$?
    case $first in  # srun's own code says little: after TERM, or where several ranks ended
        0 | {stopped} | {user_error}) code=$first; break ;;
    esac
    if [ "$first" = {port_in_use} ] && [ "$port_tries" -lt {max_port_tries} ]; then
        port_tries=$((port_tries + 1))
        echo "The master port was taken meanwhile, or a stranger came there; starting again."
{restart}    else
        break
    fi
    attempt=$((attempt + 1))
done
{requeue}case $code in
    0 | {stopped} | {user_error}) ;;
    *) echo "Resume from the last checkpoint:" {resume} ;;
esac
exit $code
"""

RESTART = """\
    elif [ "$restarts" -lt {max_restarts} ]; then
        restarts=$((restarts + 1))
        echo "Restart $restarts of {max_restarts}, from the last checkpoint."
"""

REQUEUE = """\
# scancel ends a run in the same way, but then the job does not count as running any more.
if [ "$code" = {stopped} ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -t RUNNING -o %T)" = RUNNING ]; then
    echo "Stopped and saved; back into the queue."
    scontrol requeue "$SLURM_JOB_ID"
fi
"""
