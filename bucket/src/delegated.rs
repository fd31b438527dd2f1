//! The operations of the service. All but one are those of `s3s-fs`; any other operation of S3 is refused with 501.

use futures::future::BoxFuture;
use s3s::{
    S3, S3Error, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CreateBucketInput, CreateBucketOutput,
        CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput, DeleteBucketOutput,
        DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, GetBucketLocationInput,
        GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput,
        HeadObjectOutput, ListBucketsInput, ListBucketsOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput,
        ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput,
        PutObjectInput, PutObjectOutput, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
    },
};

use crate::{Bucket, unfinished};

/// Passes operations on to `s3s-fs`. The signatures are those that `async_trait` gives the trait.
macro_rules! delegate {
    ($($name:ident: $input:ident => $output:ident),* $(,)?) => { $(
        fn $name<'life0, 'async_trait>(
            &'life0 self,
            request: S3Request<$input>,
        ) -> BoxFuture<'async_trait, S3Result<S3Response<$output>>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            S3::$name(&self.files, request)
        }
    )* };
}

impl S3 for Bucket {
    delegate! {
        abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput,
        complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput,
        copy_object: CopyObjectInput => CopyObjectOutput,
        create_bucket: CreateBucketInput => CreateBucketOutput,
        create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput,
        delete_bucket: DeleteBucketInput => DeleteBucketOutput,
        delete_object: DeleteObjectInput => DeleteObjectOutput,
        delete_objects: DeleteObjectsInput => DeleteObjectsOutput,
        get_bucket_location: GetBucketLocationInput => GetBucketLocationOutput,
        get_object: GetObjectInput => GetObjectOutput,
        head_bucket: HeadBucketInput => HeadBucketOutput,
        head_object: HeadObjectInput => HeadObjectOutput,
        list_buckets: ListBucketsInput => ListBucketsOutput,
        list_objects: ListObjectsInput => ListObjectsOutput,
        list_objects_v2: ListObjectsV2Input => ListObjectsV2Output,
        list_parts: ListPartsInput => ListPartsOutput,
        put_object: PutObjectInput => PutObjectOutput,
        upload_part: UploadPartInput => UploadPartOutput,
        upload_part_copy: UploadPartCopyInput => UploadPartCopyOutput,
    }

    fn list_multipart_uploads<'life0, 'async_trait>(
        &'life0 self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> BoxFuture<'async_trait, S3Result<S3Response<ListMultipartUploadsOutput>>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        let root = self.root.clone();
        Box::pin(async move {
            let listed = tokio::task::spawn_blocking(move || unfinished::list(&root, request.input)).await;
            Ok(S3Response::new(listed.map_err(S3Error::internal_error)??))
        })
    }
}
