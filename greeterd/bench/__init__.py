"""Measures servers from outside: load, experiments over a matrix of cases, reports.

A server is met as a user meets it: by process, socket, control command and log.
"""
