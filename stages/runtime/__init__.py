"""The worker process.

    serve       the program: starts in order, loads user code, ends in order
    loop        the main thread: a batch from the lane, computed, its results to whoever comes next
    outlets     the main thread's sockets
    sender      a thread that sends on what they keep, where the broker is slow to take it
    tray        results of batches that came as one, and a thread that sends those that are late
    streams     events of an answer that is still being computed
    window      how far a stream may run ahead of its client
    aside       a thread that fetches the next batches while ``forward`` runs
    help        whether that thread is a help; pure
    control     the control thread: the broker's word, heartbeats, signals
    membership  what that thread decides; pure
    shared      what the threads share
    parcels     batches into items, outcomes into results; pure
    trust       whether a process that was interrupted may compute on; pure
    lately      how long batches have taken by size, for a broker that begins anew; pure
    fit         how many values memory takes at once; pure
    user_metrics  the user's own metrics, for the heartbeats
    tracing     spans for requests that are sampled, where OpenTelemetry's variables ask for them
    wear        asks for a fresh worker in this one's place
    imported    tells which of the user's files are imported here, for `engine up --reload`

Threads, and what each owns:

* *main*: user code, the watchdog's timers, the lane and the outlets;
* *control*: the control socket, heartbeats, signals;
* *watchdog*: nothing; it sends the main thread a signal (:mod:`stages.watchdog`);
* *aside*: the lane while the main thread lends it, where batches of a long ``forward`` follow each other;
* *sender*: nothing; under their lock it has sockets of the outlets go on sending what they keep;
* *tray*: nothing; with a lock held it sends results by the main thread's outlets, while that is in ``forward``.

They meet in ``shared``.
"""
