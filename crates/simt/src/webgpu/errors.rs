//! Errors: to the innermost scope that takes them, or to the handler.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;
use wgpu::{Error, ErrorFilter};

/// Error scopes of each thread, and the handler.
#[derive(Default)]
pub(super) struct Errors {
    scopes: HashMap<ThreadId, Vec<(ErrorFilter, Option<Error>)>>,
    handler: Option<Arc<dyn wgpu::UncapturedErrorHandler>>,
    /// What came before there was a handler.
    waiting: Vec<Error>,
}

impl std::fmt::Debug for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Errors").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

/// A breach of WebGPU's rules.
pub(super) fn validation(what: String) -> Error {
    Error::Validation { source: what.clone().into(), description: what }
}

impl Errors {
    /// Takes an error; gives the handler that is to be called with it, if no scope takes it.
    #[must_use]
    pub(super) fn add(&mut self, error: Error) -> Option<(Arc<dyn wgpu::UncapturedErrorHandler>, Error)> {
        let filter = match error {
            Error::OutOfMemory { .. } => ErrorFilter::OutOfMemory,
            Error::Validation { .. } => ErrorFilter::Validation,
            Error::Internal { .. } => ErrorFilter::Internal,
        };
        let scopes = self.scopes.entry(std::thread::current().id()).or_default();
        if let Some((_, slot)) = scopes.iter_mut().rev().find(|(wanted, _)| *wanted == filter) {
            slot.get_or_insert(error);
            return None;
        }
        match &self.handler {
            Some(handler) => Some((handler.clone(), error)),
            None => {
                self.waiting.push(error);
                None
            }
        }
    }

    /// Sets the handler; gives what it has missed.
    #[must_use]
    pub(super) fn handle(&mut self, handler: Arc<dyn wgpu::UncapturedErrorHandler>) -> Vec<Error> {
        self.handler = Some(handler);
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn push(&mut self, filter: ErrorFilter) -> u32 {
        let scopes = self.scopes.entry(std::thread::current().id()).or_default();
        scopes.push((filter, None));
        scopes.len() as u32 - 1
    }

    pub(super) fn pop(&mut self) -> Option<Error> {
        self.scopes.get_mut(&std::thread::current().id())?.pop()?.1
    }
}
