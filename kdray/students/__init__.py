"""Families of students: each module has a family's settings and how a student of it is built from its source."""
