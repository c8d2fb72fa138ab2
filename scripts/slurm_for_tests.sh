#!/usr/bin/env bash
# A Slurm of one node for tests/test_crossval.py: installs Debian's packages if they are missing, and starts munge, the
# controller and the node's daemon on this machine. Needs root. Prints a folder; `slurm_for_tests.sh stop FOLDER` ends
# what was started. The configuration is linked to where Slurm looks for it, because Snakemake's jobs lose SLURM_CONF
# (snakemake-executor-plugin-slurm-jobstep 0.6); a machine with a Slurm of its own is left alone.
set -euo pipefail

configuration=/etc/slurm/slurm.conf
if [ "${1:-}" = stop ]; then
    [ "$(readlink "$configuration")" = "$2/slurm.conf" ] || exit 0  # of somebody else
    timeout 10 scancel --user="$(id -un)" || true
    for _ in $(seq 10); do
        [ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ] || break
        sleep 1
    done
    rm "$configuration"
    for daemon in slurmd slurmctld munged; do
        [ ! -f "$2/$daemon.pid" ] || kill "$(cat "$2/$daemon.pid")" 2>/dev/null || true
    done
    exit 0
fi
[ "$(id -u)" = 0 ] || { echo "Slurm's daemons need root" >&2; exit 1; }
if [ -L "$configuration" ] && [ ! -e "$configuration" ]; then
    rm "$configuration"  # of a run that was killed
fi
[ ! -e "$configuration" ] || { echo "$configuration is there: this machine has a Slurm of its own" >&2; exit 1; }
if ! { command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged; } >/dev/null; then
    command -v apt-get >/dev/null || { echo "no apt-get to install Slurm with" >&2; exit 1; }
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurmctld slurmd slurm-client munge) >&2 || { echo "Slurm cannot be installed" >&2; exit 1; }
fi

folder=$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX")
mkdir "$folder/state" "$folder/spool" "$folder/munge"
chmod 755 "$folder" && chmod 700 "$folder/munge"
head -c 1024 /dev/urandom > "$folder/munge/key" && chmod 400 "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" >&2
read -r controller node < <(python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
host=$(hostname -s)
cat > "$folder/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$node
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MinJobAge=600
KillWait=2
ReturnToService=2
SchedulerParameters=sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/^Mem:/ {print $2}') State=UNKNOWN
PartitionName=tests Nodes=$host Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
CONF
mkdir -p "${configuration%/*}" && ln -s "$folder/slurm.conf" "$configuration"
slurmctld >&2
slurmd >&2
for _ in $(seq 30); do
    if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
        echo "$folder"
        exit 0
    fi
    sleep 1
done
tail -n 20 "$folder"/slurm*.log >&2
"$0" stop "$folder"
echo "Slurm did not start" >&2
exit 1
