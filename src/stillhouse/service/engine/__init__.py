"""Engines: where attempts run. ``local`` runs them on this machine, ``ray`` on a cluster."""
