"""The rules, as pure values and functions: no socket, thread, clock, file or process is touched in this package.

    messages   every message of the protocol          wire       parcels: bytes in, messages out
    routing    which stage comes next                 items      what the broker keeps of a request
    batching   when does a batch leave, and why       crew       a stage's workers and what each could take
    liveness   who waits for whom how long            worker_states  a worker's life, as a table
    stage      one stage: queue, workers, in flight   front      the door: answers, duplicates, deadlines
    ledger     what is admitted and not answered      hub        what comes back midway: parts, and caches
    admission  who is let in, and why not             answers    what frontends are to be told
    fate       items whose worker is late or dies     foresight  who can still be served in time
    ends       how items end without a result         hedging    what is suspect, and is tried again in parts
    actions    what the machines want done            stats      what they count
    arena      shared memory, as numbers              sse        server-sent events, as text
    about      what a stage says of itself            lifecycle  the deployment's processes: start, restart, stop
    backoff    when to restart what died              placement  who runs on which CPU and device
    wording    what is said of requests given up      call       a frontend's request, and how its answer is told
    link       one frontend's standing with a broker  meta       what only both ends of a request's way need
    lineup     the workers, by speed and by when free  member     one of them, and how many batches it may have
    predict    how long a batch of n takes        idempotency  tries of one request, computed once
    breaker    when a stage is not fed at all         failing    when a worker is to blame, not what it got
    deaths     how a worker ended, as far as known    vitality   who is stopped or hung, seen from outside
    spacing    how much of what waits an idle worker takes, and when
    returns    whether those who are answered ask again at once
    costs      what an item will cost, by its bytes    costqueue  whose costs belong together in a batch
    foretold   whether the door is right about when a request will be done
    released   a batch that left, until it is done  trace      the last decisions, for whoever asks why
    reasons    why a batch left, in the low bits of a queue time
    goals      when answers are wanted                fairness   who may use how much while not all can be served
    killings   whom the kernel killed for want of memory
    ebb        when a peak of memory is over          fullness   when a process has all it can do
    growth     when there are more brokers then
    introduction  how peers introduce themselves, and are refused: frozen words
    processes  the deployment's processes, what is heard of them and done about them, as values
    starting   a start as people watch it, line by line
    replacing  which workers of a running deployment are replaced, and why
    rolling    in which order
    edits      for which files that are edited they are, and when
    quarantine    requests that kill workers, refused for a while
    wear       when a worker has served long enough
    demand     how many workers a stage needs, and when that is worth another number of them
    scaling    the numbers of workers that follow from it, for all stages of a deployment
    keys       the secret of a deployment, and how links are made with it
    apikeys    who may ask over HTTP, and how much
    window     how quickly counters grew lately     failures   the last ones of requests, as clients were told
    onward     where results of a stage go lately, and what they still need there
    parts      requests that go on in parts           gathered   the payload of one whose parts have come together
    memo       the caches of stages: results that are kept, computations that several wait for
    cells      several brokers of one deployment: who belongs to which, which gets a request
    oip        the Open Inference Protocol, without its tensors
    tries      requests with an Idempotency-Key, at the door

Machines (``stage``, ``front``) take events and ``now`` and append *actions* to a list; the parts in
:mod:`engine.broker` carry the actions out.
"""
