"""TorchServe: its configuration, Java, ports, launch and stop, readiness; the doctor."""
