//! Two tiny trained models, embedded so that everything runs offline.
