"""When and how it runs: the code location, its partitions and jobs, and the command behind `make run`."""
