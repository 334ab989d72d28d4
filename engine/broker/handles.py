"""Where processes hand in and ask for the descriptors that stand for memory of a GPU (:mod:`engine.handles`): a thread
of its own, since it waits for peers one after the other, and the data path for none of them."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Final

from engine.broker.arenas import Arenas
from engine.handles import ASK, HAND_IN, NO, WORDS, YES

log: Final = logging.getLogger("stageline.broker")

PAUSE_S: Final = 0.2
PATIENCE_S: Final = 0.5  # with a peer that connects and says nothing; others wait for it


class Handles:
    """Serves from :meth:`start` until :meth:`stop`. Its socket lies in the run directory, which is private."""

    def __init__(self, path: str, arenas: Arenas) -> None:
        self._path = Path(path)
        self._arenas = arenas
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="handles", daemon=True)

    def start(self) -> None:
        """Without it tensors go by way of the CPU, so what fails here is logged."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._path.unlink(missing_ok=True)  # of a broker that was killed: there is no other, we have its front
            sock.bind(str(self._path))
            self._path.chmod(0o600)
            sock.listen()
        except OSError as error:
            sock.close()
            log.warning("tensors on a GPU go by way of the CPU", extra={"reason": str(error)})
            return
        self._socket = sock
        self._thread.start()

    def stop(self) -> None:
        sock, self._socket = self._socket, None
        if sock is None:
            return
        sock.shutdown(socket.SHUT_RDWR)  # which wakes who waits in accept
        self._thread.join()
        sock.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while (sock := self._socket) is not None:
            try:
                peer, _ = sock.accept()
            except OSError as error:
                if self._socket is None:
                    return
                log.warning("a process could not be told of memory", extra={"reason": str(error)})
                time.sleep(PAUSE_S)  # out of descriptors, which the system says at once
                continue
            with peer:
                try:
                    peer.settimeout(PATIENCE_S)
                    self._answer(peer)
                except OSError as error:  # it has gone, or says nothing
                    log.debug("a process was not told of memory", extra={"reason": str(error)})

    def _answer(self, peer: socket.socket) -> None:
        words, fds, _, _ = socket.recv_fds(peer, WORDS.size + 1, 1)
        try:
            what, arena = WORDS.unpack(words)
        except struct.error:
            what, arena = b"", 0
        if what == HAND_IN and len(fds) == 1 and self._arenas.keep(arena, fds[0]):
            peer.send(YES)
            return
        for fd in fds:
            os.close(fd)
        found = self._arenas.kept(arena) if what == ASK else None
        if found is None:
            peer.send(NO)
            return
        try:
            socket.send_fds(peer, [YES], [found])
        finally:
            os.close(found)
