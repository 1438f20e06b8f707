#!/bin/bash
# The units under a real systemd, in namespaces of its own: mediator, relay and agent are set up,
# installed, started, reloaded, stopped and removed, each as its own user and without root.
#
#   systemd.sh PROGRAMS WORK     PROGRAMS: directory of the four programs; WORK: an empty directory
#
# Needs root. Exits 0 if all of it held; WORK/check.log tells what was done.
set -eu

here=$(readlink -f "$0")
users="adit-mediator adit-relay adit-agent"
# Where the programs are within: only that is readable to everybody.
bin=/run/adit-bin
data=/var/lib/adit

# On this machine: a cgroup of its own, so that nothing outside is systemd's to manage.
outer() {
	root=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)
	group=$root/adit-systemd-$$
	mkdir "$group"
	trap 'find "$group" -depth -type d -exec rmdir {} \; || true' EXIT
	timeout -s KILL 180 "$here" enter "$group" "$1" "$2" >"$2/systemd.log" 2>&1 || true
	[ -e "$2/held" ] || { tail -n 20 "$2/systemd.log" "$2/check.log" >&2; exit 1; }
}

enter() {
	echo $$ >"$1/cgroup.procs"
	exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child "$here" inner "$2" "$3"
}

# Within: only what the units need is of this machine.
inner() {
	programs=$1 work=$2
	mount --make-rprivate /
	mount -t proc proc /proc
	# systemd raises kernel limits; they are the whole machine's.
	mount --bind /proc/sys /proc/sys
	mount -o remount,ro,bind /proc/sys
	umount -R /sys/fs/cgroup || true
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	cp /etc/passwd "$work/passwd"
	cp /etc/group "$work/group"
	id=3990
	for user in $users; do
		id=$((id + 1))
		echo "$user:x:$id:$id::$data:/usr/sbin/nologin" >>"$work/passwd"
		echo "$user:x:$id:" >>"$work/group"
	done
	mount --bind "$work/passwd" /etc/passwd
	mount --bind "$work/group" /etc/group
	mount -t tmpfs tmpfs /run
	mkdir -p "$bin" $data /run/lock
	mount -t tmpfs -o mode=755 tmpfs $data
	mount -t tmpfs tmpfs /etc/systemd/system
	cp "$programs/mediator" "$programs/relay" "$programs/agent-tunnel" "$bin"
	units=/etc/systemd/system
	for unit in adit-mediator adit-relay; do
		sed "s#^ExecStart=/usr/bin/#ExecStart=$bin/#" \
			"$(dirname "$here")/../../deploy/systemd/$unit.service" >$units/$unit.service
	done
	for unit in $users; do
		mkdir $units/$unit.service.d
		# Nothing of an ordinary boot; what they say, to us.
		printf '[Unit]\nDefaultDependencies=no\n[Service]\nStandardOutput=append:%s\nStandardError=append:%s\n' \
			"$work/$unit.log" "$work/$unit.log" >$units/$unit.service.d/here.conf
	done
	cat >$units/adit-check.service <<-END
		[Unit]
		DefaultDependencies=no
		[Service]
		Type=oneshot
		ExecStart=$here check $work
		ExecStopPost=/bin/systemctl --no-block exit 0
		TimeoutStartSec=150
		StandardOutput=append:$work/check.log
		StandardError=append:$work/check.log
	END
	printf '[Unit]\nDefaultDependencies=no\nWants=adit-check.service\nAllowIsolate=yes\n' \
		>$units/adit-check.target
	exec env -i container=adit PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
		--unit=adit-check.target --log-target=console --show-status=no
}

# As the machine's administrator.
check() {
	work=$1
	set -x
	token='s/.*"token":"\([^"]*\)".*/\1/p'
	$bin/mediator init --data-dir $data/mediator --host 127.0.0.1 --port 18443 --stun-port 13478
	systemctl start adit-mediator
	await active adit-mediator
	# It runs before it answers.
	until as adit-mediator mediator status; do sleep 0.2; done
	as adit-mediator mediator client add main/hq
	as adit-mediator mediator token relay --json | sed -n "$token" |
		$bin/relay join - --advertise 127.0.0.1:443 --data-dir $data/relay
	systemctl start adit-relay
	await active adit-relay
	as adit-mediator mediator token agent --client main/hq --json | sed -n "$token" |
		$bin/agent-tunnel enroll - --name pc --data-dir $data/agent-tunnel
	service install
	service start
	await_online
	for unit in $users; do
		confined "$unit" "$(systemctl show -p MainPID --value "$unit")"
	done
	# What an administrator made as root is the service's own by now.
	for dir in $data/*; do
		[ "$(stat -c %a "$dir")" = 700 ]
		[ -z "$(find "$dir" -user root)" ]
		[ -z "$(find "$dir" -type f -perm /077)" ]
	done
	systemctl reload adit-mediator adit-relay adit-agent
	systemctl restart adit-relay
	await active adit-relay
	systemctl is-active adit-mediator adit-agent
	# One that dies is started again.
	systemctl kill -s KILL adit-relay
	await active adit-relay
	service stop
	service status | grep '"stopped"'
	service uninstall
	[ ! -e /etc/systemd/system/adit-agent.service ]
	if service status; then exit 1; fi
	systemctl stop adit-mediator adit-relay
	for unit in adit-mediator adit-relay; do
		[ "$(systemctl show -p Result --value $unit)" = success ]
	done
	touch "$work/held"
}

service() {
	$bin/agent-tunnel service "$1" --data-dir $data/agent-tunnel --json
}

as() {
	user=$1 program=$2
	shift 2
	setpriv --reuid "$user" --regid "$user" --clear-groups \
		"$bin/$program" "$@" --data-dir "$data/$program"
}

await() {
	for _ in $(seq 100); do
		[ "$(systemctl is-active "$2")" != "$1" ] || [ "$(main "$2")" = 0 ] || return 0
		sleep 0.2
	done
	return 1
}

main() {
	systemctl show -p MainPID --value "$1"
}

await_online() {
	for _ in $(seq 100); do
		! as adit-agent agent-tunnel status --json | grep -q '"state":"online"' || return 0
		sleep 0.2
	done
	return 1
}

# Its own user; no capability but the one for port 443; no new privileges; calls filtered.
confined() {
	status=/proc/$2/status
	grep -P "^Uid:\t$(id -u "$1")\t" "$status"
	case $1 in
	adit-agent) grep -P '^CapBnd:\t0+$' "$status" ;;
	*) grep -P '^CapBnd:\t0{13}400$' "$status" ;;
	esac
	grep -P '^NoNewPrivs:\t1$' "$status"
	grep -P '^Seccomp:\t2$' "$status"
}

case $1 in
enter | inner | check) "$@" ;;
*) outer "$@" ;;
esac
