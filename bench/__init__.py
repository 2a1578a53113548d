"""Measurements beside other servers on the same machine, in the same run.  One file per question; `./run bench`."""
