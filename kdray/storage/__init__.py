"""Where kdray writes: paths, atomic files and folders, buckets, and the process that owns a sweep.

In reading order:

- `paths`           every path of a storage and of a sweep
- `files`           writes files and folders atomically; scratch folders; fingerprints
- `records`         small JSON files as frozen pydantic models
- `mirror`          the local copy of a bucket on each node
- `bucket`          reads and writes single objects of a bucket
- `bucket_copies`   copies the files that grow during a sweep to the bucket
- `owner`           which process runs a sweep: a file lock and a heartbeat
"""
