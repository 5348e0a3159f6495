-- Users and their permissions have a database of their own. PostgreSQL runs this file once, on an empty volume.
CREATE DATABASE mlflow_users;
