"""Where everything lies: paths, whole files and folders, buckets, and who owns a sweep's folder.

In reading order:

- `paths`           every path of a storage and of a sweep
- `files`           writes files and folders whole or not at all; fingerprints
- `records`         small JSON files as frozen values
- `mirror`          a storage in a bucket, as each node sees it
- `bucket`          the objects in a bucket
- `bucket_copies`   copies the files that grow into the bucket while a sweep runs
- `owner`           which process runs a sweep: a lock and signs of life
"""
