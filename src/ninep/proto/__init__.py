"""The wire, without any wire: types, errors, messages, frames and negotiation as plain functions of bytes.

Imports nothing of ours outside this package, and neither trio, os, socket, time, random nor logging.
"""
