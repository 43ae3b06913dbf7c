"""The processes of a run on several hosts.

cluster      which processes there are, from flags or the cluster's environment
distributed  joining them, and leaving together
agreement    whether all are about to do the same
"""
