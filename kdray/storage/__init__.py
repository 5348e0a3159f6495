"""Where kdray writes: paths, atomic files and folders, buckets, and the process that owns a sweep.

In reading order:

- `paths`           every path of a storage and of a sweep
- `names`           names from files and buckets: which path a name may give, which links are followed
- `trust`           addresses from files: which of them may be used
- `sqlite_files`    the files beside a SQLite database that SQLite obeys
- `safe_json`       JSON that somebody else may have written: within limits
- `files`           writes files and folders atomically; scratch folders; fingerprints
- `records`         small JSON files as frozen pydantic models
- `mirror`          the local copy of a bucket on each node
- `bucket`          reads and writes single objects of a bucket
- `folder_list`     the list of the files of a folder in a bucket
- `object_versions` which version of an object a local copy is
- `bucket_copies`   copies the files that grow during a sweep to the bucket
- `owner`           which process runs a sweep: a file lock and a heartbeat
"""
