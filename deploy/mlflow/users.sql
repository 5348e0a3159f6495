-- Users and their rights lie beside the runs, in a database of their own; PostgreSQL runs this once, on an empty volume.
CREATE DATABASE mlflow_users;
