//! What the two servers answer.

use crate::http::Head;
use crate::repository::{Access, File, Repository};
use crate::request::{Request, Site};
use crate::server::State;
use serde_json::json;

/// An answer before anything has gone wrong with it.
pub(crate) struct Answer<'a> {
    pub(crate) head: Head,
    pub(crate) body: Content<'a>,
}

/// The body of an answer.
pub(crate) enum Content<'a> {
    Text(String),
    /// The bytes of a file, as far as the request's range says.
    File(&'a File),
}

impl Answer<'_> {
    fn text(head: Head, text: impl Into<String>) -> Self {
        Self { head, body: Content::Text(text.into()) }
    }

    /// An error as the Hub words it.
    fn error(status: u16, code: &str, message: &str) -> Self {
        let head = Head::new(status).with("x-error-code", code).with("x-error-message", message);
        Self::text(head, json!({"error": message}).to_string())
    }
}

/// What `token` may see.
enum Visitor {
    Stranger,
    /// Of an account that was not let in.
    Outsider,
    Member,
    /// The token is none.
    Impostor,
}

/// Answers `request`; notes the file that it asks for.
pub(crate) fn answer<'a>(state: &'a State, request: &mut Request) -> Answer<'a> {
    if !["GET", "HEAD"].contains(&request.method.as_str()) {
        return Answer::error(405, "", "only GET and HEAD");
    }
    match request.site {
        Site::Hub => hub(state, request),
        Site::Cdn => cdn(state, request),
    }
}

fn hub<'a>(state: &'a State, request: &mut Request) -> Answer<'a> {
    let visitor = match request.token.as_deref() {
        None => Visitor::Stranger,
        Some(crate::TOKEN) => Visitor::Member,
        Some(crate::TOKEN_WITHOUT_ACCESS) => Visitor::Outsider,
        Some(_) => Visitor::Impostor,
    };
    if matches!(visitor, Visitor::Impostor) {
        return Answer::error(401, "", "Invalid credentials in Authorization header");
    }
    let path = request.path.clone();
    let (id, rest, is_api) = match path.strip_prefix("/api/models/") {
        Some(rest) => match rest.split_once("/revision/") {
            Some((id, revision)) => (id, revision.to_owned(), true),
            None => (rest, "main".into(), true),
        },
        None => match path.trim_start_matches('/').split_once("/resolve/") {
            Some((id, rest)) => (id, rest.to_owned(), false),
            None => return Answer::error(404, "", "no such page"),
        },
    };
    if let Some(new) = state.renamed(id) {
        let target = path.replacen(id, &new, 1);
        return Answer::text(Head::new(307).with("location", target), "");
    }
    let visible =
        |repository: &&Repository| repository.access != Access::Private || matches!(visitor, Visitor::Member);
    let Some(repository) = state.repository(id).filter(visible) else {
        // Strangers are not told whether it is private.
        let status = if matches!(visitor, Visitor::Stranger) { 401 } else { 404 };
        return Answer::error(status, "RepoNotFound", "Repository not found");
    };
    if is_api {
        return info(repository, &rest, request);
    }
    let revision = repository.revisions.iter().find(|name| rest.starts_with(&format!("{name}/")));
    let revision = revision.map_or_else(|| rest.split('/').next().unwrap_or_default(), String::as_str);
    let name = rest.get(revision.len() + 1..).unwrap_or_default();
    resolve(state, repository, revision, name, &visitor, request)
}

/// `/api/models/<id>/revision/<revision>`
fn info<'a>(repository: &Repository, revision: &str, request: &Request) -> Answer<'a> {
    if !repository.has_revision(revision) {
        return Answer::error(404, "RevisionNotFound", "Invalid rev id");
    }
    let with_blobs = request.query.contains("blobs=true");
    let sibling = |(name, file): (&String, &File)| {
        let mut sibling = json!({"rfilename": name});
        if with_blobs {
            sibling["size"] = file.body.len().into();
            match file.large {
                true => sibling["lfs"] = json!({"sha256": file.etag(), "size": file.body.len()}),
                false => sibling["blobId"] = file.etag().into(),
            }
        }
        sibling
    };
    let gated = if repository.access == Access::Gated { json!("manual") } else { json!(false) };
    let text = json!({
        "id": repository.id,
        "modelId": repository.id,
        "sha": repository.commit(),
        "private": repository.access == Access::Private,
        "gated": gated,
        "siblings": repository.files.iter().map(sibling).collect::<Vec<_>>(),
    });
    Answer::text(Head::new(200).with("content-type", "application/json"), text.to_string())
}

/// `/<id>/resolve/<revision>/<file>`
fn resolve<'a>(
    state: &State,
    repository: &'a Repository,
    revision: &str,
    name: &str,
    visitor: &Visitor,
    request: &mut Request,
) -> Answer<'a> {
    if repository.access == Access::Gated {
        let message = format!("Access to model {} is restricted", repository.id);
        match visitor {
            Visitor::Stranger | Visitor::Impostor => return Answer::error(401, "GatedRepo", &message),
            Visitor::Outsider => return Answer::error(403, "GatedRepo", &message),
            Visitor::Member => {}
        }
    }
    if !repository.has_revision(revision) {
        return Answer::error(404, "RevisionNotFound", "Invalid rev id");
    }
    let Some(file) = repository.files.get(name) else {
        return Answer::error(404, "EntryNotFound", "Entry not found");
    };
    request.file = Some(name.to_owned());
    let etag = file.etag();
    if !file.large {
        let head =
            Head::new(200).with("etag", format!("\"{etag}\"")).with("x-repo-commit", repository.commit());
        return Answer { head: head.with("accept-ranges", "bytes"), body: Content::File(file) };
    }
    let target = format!(
        "{}/{}/{etag}?X-Amz-Signature={}&file={name}",
        state.cdn_endpoint(),
        repository.id,
        signature(etag)
    );
    let head = Head::new(302)
        .with("location", target.clone())
        .with("x-repo-commit", repository.commit())
        .with("x-linked-size", file.body.len().to_string())
        .with("x-linked-etag", format!("\"{etag}\""))
        .with("accept-ranges", "bytes");
    Answer::text(head, format!("Found. Redirecting to {target}"))
}

/// `/<id>/<etag>?<signature>`
fn cdn<'a>(state: &'a State, request: &mut Request) -> Answer<'a> {
    if request.token.is_some() {
        // As S3 does: one kind of authorization is enough.
        return Answer::error(400, "", "Only one auth mechanism allowed");
    }
    let found = request.path.trim_start_matches('/').rsplit_once('/').and_then(|(id, etag)| {
        let repository = state.repository(id)?;
        let (name, file) = repository.files.iter().find(|(_, file)| file.large && file.etag() == etag)?;
        Some((name, file, etag))
    });
    let Some((name, file, etag)) = found else { return Answer::error(404, "", "no such blob") };
    if !request.query.contains(&format!("X-Amz-Signature={}", signature(etag))) {
        return Answer::error(403, "", "SignatureDoesNotMatch");
    }
    let head = Head::new(200).with("etag", format!("\"{etag}\"")).with("accept-ranges", "bytes");
    let name = name.clone();
    request.file = Some(name);
    Answer { head, body: Content::File(file) }
}

/// What proves that the Hub made a link: its own letters the other way round.
fn signature(etag: &str) -> String {
    etag.chars().rev().collect()
}
