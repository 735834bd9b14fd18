"""A service: what all five have in common, from the core's duties to the process.

`shell` is the base of the five services. It puts these parts together, and none of them knows it:

- `core`: what every core has: an identity, broadcasts, answers, a heartbeat
- `loop`: what one turn does, and in which order
- `stage_sockets`, `inbox`, `outbox`: what a stage opens, takes in and sends
- `watch`: metrics, health, readiness, handshakes, progress of long work
- `process`, `run_folder`, `cpus`, `open_files`: its place in the system

Around a service that has a process to itself: `entry` begins it (`startup`), `runner` runs it to
its end, and `failures` remembers what ended it.

May import the root of `common`, `settings`, `security`, `bus` and `metrics`.
"""
