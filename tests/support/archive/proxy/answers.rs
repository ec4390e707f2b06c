//! Answers that no server gave: errors as S3 words them, and listings that lack something.

use super::http::Head;

pub(super) fn error_head(status: u16, body_bytes: usize) -> Head {
    let reason = match status {
        403 => "Forbidden",
        404 => "Not Found",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Refused",
    };
    let headers = [
        ("content-type", "application/xml".to_owned()),
        ("content-length", body_bytes.to_string()),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Head { first: format!("HTTP/1.1 {status} {reason}"), headers }
}

pub(super) fn error_xml(status: u16) -> Vec<u8> {
    let (code, message) = match status {
        403 => ("AccessDenied", "Access Denied."),
        404 => ("NoSuchKey", "The specified key does not exist."),
        503 => ("SlowDown", "Please reduce your request rate."),
        _ => ("InternalError", "We encountered an internal error. Please try again."),
    };
    let error = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{error}").into_bytes()
}

/// A listing without the objects whose key contains `text`.
pub(super) fn without_contents(listing: &str, text: &str) -> String {
    const END: &str = "</Contents>";
    let mut kept = String::with_capacity(listing.len());
    let mut rest = listing;
    while let Some(begin) = rest.find("<Contents>") {
        let Some(length) = rest[begin..].find(END) else { break };
        let end = begin + length + END.len();
        let key = rest[begin..end].split_once("<Key>").and_then(|(_, it)| it.split_once("</Key>"));
        kept += &rest[..begin];
        if !key.is_some_and(|(key, _)| key.contains(text)) {
            kept += &rest[begin..end];
        }
        rest = &rest[end..];
    }
    kept + rest
}
