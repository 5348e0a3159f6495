"""Who works: slots are groups of worker processes that start once, stay warm, and run one job after another.

In reading order:

- `job`           the interface between slots and jobs: Job, Report, Instruction, Worker; jobs that run as one
- `pool`          SlotSettings; the interface of every pool of slots
- `local`         one slot in this process, without Ray
- `cluster`       joins or starts Ray; lists the machines of the cluster
- `local_ray`     the token and the private folder of a Ray that is started on this machine
- `sizing`        divides the processors of a cluster into slots
- `ray_slots`     slots on Ray: Ray Train worker groups
- `board`         the actor that assigns jobs to slots and passes on their reports (`board_state`: its data)
- `worker_processes`  whether a worker's process answers, and how it is killed
- `client`        starts the board, submits jobs to it and reads their reports
- `serving`       the loop that each worker of a slot runs
- `environment`     checks that a worker sees the driver's storage and runs the driver's code
- `process_group`   chooses the network over which the workers of a slot communicate
- `ray_internals`   the private parts of Ray that the other files need, each with the reason
- `interrupts`      Ctrl-C and SIGTERM
"""
