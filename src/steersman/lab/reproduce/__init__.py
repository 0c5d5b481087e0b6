from steersman.lab.reproduce.benchmark import Benchmark, Benchmarking, benchmark_names, load_benchmark
from steersman.lab.reproduce.reproduction import Reproduction, Work, load_reproduction, reproduction_names

__all__ = [
    "Benchmark",
    "Benchmarking",
    "Reproduction",
    "Work",
    "benchmark_names",
    "load_benchmark",
    "load_reproduction",
    "reproduction_names",
]
