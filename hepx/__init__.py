"""hepx: train graph classifiers on ATLAS events and explain, with checks, why they select an event.

Where things are:
    events, schemas      ROOT files -> EventBatch (GeV, rad)
    kinematics           m_bb, m_T, m_CT, ...: pure functions
    graph, store         EventBatch -> GraphBatch -> shards on disk
    models, train        graph classifiers and how they are fitted
    evaluate             weighted ROC, rejection, per process and mass point
    attribution          which objects, features and pairs made the score
    attention, experts   what the attention looks at, what the experts do
    report               figures and report.html from saved results
    run, cli             one config, one run folder, one command line
"""

__version__ = "0.1.0"
