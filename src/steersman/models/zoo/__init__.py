from steersman.models.zoo.load import folder, folders, load_network, names, read_network

__all__ = ["folder", "folders", "load_network", "names", "read_network"]
