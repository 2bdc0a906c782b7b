"""The service manager: notifications to it, descriptors kept in its store, sockets from it."""
