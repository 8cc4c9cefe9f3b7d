"""The artifact store. Read in this order: identity, manifest, local, remote, store."""
