from steersman.models.zoo.networks import build_network, folder, load_network, names, read_network

__all__ = ["build_network", "folder", "load_network", "names", "read_network"]
