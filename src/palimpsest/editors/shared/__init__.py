"""What several editors use, and the parts of one that are too large for its file. A map; a test holds it to the folder.

Key-value writers: ROME, MEMIT, COMEBA-HK ("spec", "quirk" there: docs/spec/comeba_hk.md)
    key_value               base class: settings, contexts, target vectors, the layer-by-layer write
    matrix_writer           base classes of those that write into the matrices themselves
    contexts                texts put before a prompt
    keys                    what enters the edited matrix at the subject's last token
    target_vectors          the search of z, many edits at once
    target_sequences        the token sequences it runs on
    beginnings              what rows begin with alike is run once
    lanes                   packs their short tails, so that next to no padding is computed
    packing                 where each lies
    target_vectors_plain    the same search, one edit at a time: the yardstick
    stored_targets          searches made beforehand and shared by several runs
    layer_writer            shares out what is missing over the layers
    carried                 what is kept by layer from batch to batch
    key_system              least squares against stored keys, batch after batch
    factors, solve          Cholesky factor of C_0; the linear algebra in float64
    hook_layers             COMEBA-HK's second matrix, used where its output differs enough

Adapters beside one linear map: GRACE, Defer, memory network (docs/spec/grace.md)
    adapter_editor          base class
    gated_adapter           which positions are overwritten, and for which rows
    codebook                GRACE's keys, radii, values, and how edits change them
    values_ahead            values of coming edits, trained together
    keyed                   what a lifelong run may ask of an editor with a codebook
    small_nets              base class of Defer and the memory network
    nearest                 exact nearest neighbours, in LU too

MEND (docs/spec/serac_mend.md)
    mend_network            the networks that turn the factors of a gradient into an edit's
    mend_edit               which matrices, which loss, the change
    mend_learner            their training
    gradient_factors        a gradient as a sum of outer products, and updates of that form

Edits kept as text: SERAC, LU, retrieval (docs/spec/serac_mend.md)
    routed_editor           base class: the memory, one decision for each input
    routed_output           rows whose logits another voice speaks
    text_keys               vectors of a growing memory, one for each different text
    scope_classifier        SERAC's g
    scope_memory            its scores against a growing memory
    counterfactual          SERAC's h
    serac_learner           training of both
    learned_weights         their weights, by name

All, or several of these
    weights                 matrices written in place, with a way back: key-value writers, FT, MEND
    adam                    Adam for few steps on small tensors: target vectors, adapters, FT
    aftermath               whether a model still gives finite numbers after an edit
    learned                 how MEND and SERAC take up their training
    speech                  `Editor.generate`
    usable                  which edits can be tried at all
    belonging               what a saved state belongs to
"""
