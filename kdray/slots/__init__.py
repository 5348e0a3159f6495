"""Who works: slots are workers that start once, stay warm, and run one job after another.

In reading order:

- `job`           the seam between slots and jobs: Job, Report, Worker
- `pool`          SlotSettings; what every pool of slots promises
- `local`         one slot in this process, without Ray
- `cluster`       joins or starts Ray; which machines it has
- `sizing`        how the processors of a cluster are divided into slots
- `ray_slots`     slots on Ray: Ray Train worker groups
- `board`         the actor that hands jobs to slots and reports to whoever asked (`board_state`: what it keeps)
- `client`        submits jobs to the board and reads their reports
- `serving`       what each worker of a slot runs
- `environment`     checks that a worker sees the driver's storage and runs the driver's code
- `process_group`   how the workers of a slot find each other
- `ray_internals`   the private parts of Ray that the rest needs, each with its reason
- `interrupts`      Ctrl-C and SIGTERM
"""
