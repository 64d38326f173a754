"""What a request costs on each event loop: the benchmarks of uringloop. Run `python -m bench`; see README.md."""
